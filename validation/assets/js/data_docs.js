// The two buttons of the sidebar: all checks, or only those that did not pass.
$(function () {
  $("[data-show]").on("click", function () {
    const all = $(this).data("show") === "all";
    $(".hide-succeeded-validation-target-child").parent().toggle(all);
    $(".hide-succeeded-validation-target").toggle(all);
    $(".hide-succeeded-validations-column-section-target-child").parent().parent().each(function () {
      $(this).toggle(all);
      $('a[href="#' + this.id + '"]').toggle(all);
    });
  });
});
